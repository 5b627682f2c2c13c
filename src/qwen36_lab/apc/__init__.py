"""What prefix caching reuses: made-up request traces, the replay of them through every policy, and the bounds."""
