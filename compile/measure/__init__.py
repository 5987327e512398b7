"""What is measured of a model: accuracy with its bound, CPU time, multiply-accumulates, joules."""
