"""Before a run: preflight checks, its workload and inputs, the policy it starts from, and resuming."""
