"""The loop: one step, one file, one public function."""
