"""Contract suites that plug-in authors inherit."""
