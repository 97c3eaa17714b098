"""Token reduction methods from other papers and simple baselines, all behind `merge_by_peer`."""
