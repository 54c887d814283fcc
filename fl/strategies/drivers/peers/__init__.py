"""Learning without a server: gossip in rounds and in pairs, samples, walks."""
