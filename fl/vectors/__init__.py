"""Models as flat vectors, without Flower: where each entry lies, and how vectors are stored."""
