package sweeper

import "time"

// UnreadRetention is how long the platform keeps inbox rows that their workspace has not read; docs/limits.md promises it.
const UnreadRetention = 30 * 24 * time.Hour
