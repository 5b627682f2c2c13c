"""What to switch off where a probe is answered otherwise, in words that several share."""

KERNELS_TORCH = "`kernels: torch` in the profile, and compile again"
NOTHING = "nothing"
CALIBRATE = "nothing: `qwen36 kernels calibrate` takes the figure"
