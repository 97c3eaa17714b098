"""What the jobs need of Ray: a session, actors, limits of processes, faults and the rule of retrying."""
