"""The discrete-event core: events in order, tasks in flight, shared links, the trace."""
