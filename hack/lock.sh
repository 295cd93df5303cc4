# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# lock.sh is for scripts that build, as a source: until the script ends no other one
# of this clone builds, since all write to .build.
mkdir -p .build
exec 9>.build/lock
if ! flock -n 9; then
	echo "Another build runs in this clone; waiting for it."
	flock 9
fi
