"""perfsuite finds the fastest kernel for your machine and proves it."""
