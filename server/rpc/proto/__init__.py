"""The wire contracts of the gRPC services and the code that `make protos` makes of them."""
