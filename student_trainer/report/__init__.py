"""What people look at: one HTML file with tables, charts and a map, the figures, the trips, and a bundle of all."""
