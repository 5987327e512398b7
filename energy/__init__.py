"""What is drawn, how clean it is, and who owes which joule. Imports none of the other packages."""
