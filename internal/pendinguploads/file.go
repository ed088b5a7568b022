package pendinguploads

import "fmt"

// URI returns the reference by which messages name the file until its workspace has saved it.
func (f File) URI() string {
	return "platform-pending:" + f.Workspace.String() + "/" + f.ID.String()
}

// State returns the state of the file.
func (f File) State() State {
	switch {
	case f.AckedAt != nil:
		return Acked
	case f.FetchedAt != nil:
		return Fetched
	default:
		return Staged
	}
}

// Error implements error.
func (e *QuotaError) Error() string {
	return fmt.Sprintf("pendinguploads: quota of %s exceeded: %d of %d used", e.What, e.Used, e.Limit)
}

// Unwrap returns ErrQuota.
func (e *QuotaError) Unwrap() error { return ErrQuota }
