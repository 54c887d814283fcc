"""All that knows Flower's objects: records, ids, what a message weighs, and what Flower hides."""
