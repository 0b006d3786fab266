"""What every part uses: checks and errors of one wording, files, limits, untrusted arrays."""
