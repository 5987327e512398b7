"""`/console`: one page that shows what the server does and why, and the form that tunes it."""
