"""What must hold of every implementation of a port, as tests that anybody can run against his own."""
