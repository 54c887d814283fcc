"""The ClientApp that runs any client rule.

A message goes through `inbox` (what it says), `planner` (what that costs a device), `trainer` (one
client by itself, or many as one program) and `outbox` (what is sent). `uplink` and `downlink` are
the client's ends of compression; `task_app` is one app for several learning tasks.
"""
