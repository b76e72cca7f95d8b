"""Server, daemon and agent of this computer, as `cloudagent up` runs them."""
