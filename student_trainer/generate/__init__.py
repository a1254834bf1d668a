"""From a trained student to whole trips: OD pairs -> search -> trips with times."""
