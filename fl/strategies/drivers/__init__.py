"""What runs server rules on any Flower grid: one driver for each pattern of communication."""
