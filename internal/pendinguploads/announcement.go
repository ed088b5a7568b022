package pendinguploads

import (
	"encoding/hex"
	"encoding/json"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
)

// announcement returns the inbox row of the file. Pollers in the field parse it, so its format is fixed.
func (f File) announcement() activity.Entry {
	// A struct of strings and a number always marshals.
	body, _ := json.Marshal(struct {
		FileID   uuid.UUID `json:"file_id"`
		Name     string    `json:"name"`
		MIMEType string    `json:"mimeType"`
		Size     int64     `json:"size"`
		URI      string    `json:"uri"`
		SHA256   string    `json:"sha256"`
	}{f.ID, f.Name, f.MIMEType, f.Size, f.URI(), hex.EncodeToString(f.SHA256[:])})
	return activity.Entry{
		Type:        activity.TypeA2AReceive,
		TargetID:    uuid.NullUUID{UUID: f.Workspace, Valid: true},
		Method:      activity.MethodChatUpload,
		Summary:     activity.MethodChatUpload + ": " + f.Name,
		RequestBody: body,
		Status:      activity.StatusOK,
	}
}
