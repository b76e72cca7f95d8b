"""The commands, one file each. Bodies import what they run, so that `status` stays fast."""
