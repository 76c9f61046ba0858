"""How far a judge can be believed: audits of what it said, gold data, limits that stop a run."""
