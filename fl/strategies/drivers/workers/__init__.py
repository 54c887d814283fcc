"""Workers of one model that send a gradient at every step: coded, the first k, replicas."""
