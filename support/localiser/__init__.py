"""Where a red accuracy comes from: the stage, the block of the network, the classes and images."""
