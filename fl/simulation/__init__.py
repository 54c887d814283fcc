"""Virtual time: the event queue, the fleet and its faults, and Flower's Grid on top of them."""
