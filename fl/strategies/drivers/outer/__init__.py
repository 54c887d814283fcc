"""Workers that train by themselves and meet for outer steps, and who gather one large batch."""
