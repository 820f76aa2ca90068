"""The processes that compute and evaluate: tasks, relay, reaper, embedded executor, objective workers."""
