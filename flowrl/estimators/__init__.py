"""How likely the policy finds what was made: the only bridge between networks and algorithms."""
