"""Make datasets (`build`, offline, no torch), then stream them into training (`stream`)."""
