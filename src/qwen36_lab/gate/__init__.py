"""A quality gate: fixed prompts with checks, asked of a deployment before traffic goes to it."""
