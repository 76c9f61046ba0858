"""How far a judge can be believed: audits of its verdicts, agreement with people, limits that stop a run."""
