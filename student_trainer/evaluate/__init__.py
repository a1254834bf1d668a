"""How good generated trips are, and whether one model's are better than another's."""
