"""What any part of the package uses: progress, threads, copies, deprecations."""
