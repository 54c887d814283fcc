"""What is simulated: devices, links, availability, faults, and fleets of them."""
