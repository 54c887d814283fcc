"""What runs server rules on any Flower grid: a package for each pattern of communication.

`rounds`, `events` (asynchronous), `outer` (steps of workers that train by themselves), `peers` (no
server), `stages` (of one model) and `workers` (a gradient at every step); what these share is here.
"""
