"""Published methods as compositions of parts: one file each, named as in a config (`flowrl.composition` finds them)."""
