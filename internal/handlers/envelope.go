package handlers

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"strings"
	"unicode"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
)

// A message is a JSON-RPC request for an agent in its normalised form, which is both stored and forwarded: an
// agent reads the same whether it polls or is called.
type message struct {
	body   json.RawMessage
	method string
	named  bool              // the sender gave it a messageId, so that it can send it again
	digest [sha256.Size]byte // if named: of everything but the envelope's id, which a client changes when it sends again
}

// parseMessage checks that raw is a JSON-RPC request, and normalises it.
func parseMessage(raw []byte) (message, error) {
	if err := checkJSON(raw); err != nil {
		return message{}, err
	}
	invalid := refuse(http.StatusBadRequest, "invalid_json", "request body must be a JSON-RPC object")
	var envelope object
	if err := json.Unmarshal(raw, &envelope); err != nil || envelope == nil {
		return message{}, invalid.because(err)
	}
	var method string
	err := json.Unmarshal(envelope["method"], &method)
	if err != nil || method == "" || len(method) > maxMethodBytes || strings.ContainsFunc(method, unicode.IsControl) {
		return message{}, refuse(http.StatusBadRequest, "invalid_method", "method must be a string of 1 to 200 bytes without control characters").because(err)
	}
	if method == activity.MethodChatUpload {
		return message{}, refuse(http.StatusBadRequest, "reserved_method", "method "+method+" is reserved for the platform; upload the file instead")
	}
	m := message{body: raw, method: method}
	changed := envelope.fill("jsonrpc", "2.0")
	if _, ok := envelope["id"]; !ok {
		changed = envelope.fill("id", uuid.NewString())
	}
	var params, inner object
	if json.Unmarshal(envelope["params"], &params) == nil && json.Unmarshal(params["message"], &inner) == nil && inner != nil {
		m.named = method == methodSend && !inner.missing("messageId")
		if normaliseInner(inner) {
			changed = true
			params["message"] = inner.encode()
			envelope["params"] = params.encode()
		}
	}
	if changed {
		m.body = envelope.encode()
	}
	if m.named {
		delete(envelope, "id")
		m.digest = digestOf(envelope.encode())
	}
	return m, nil
}

// key identifies the message among those of its workspace. Two senders may use the same messageId.
func (m message) key(source uuid.NullUUID) activity.Key {
	return sha256.Sum256(append(source.UUID[:], m.digest[:]...))
}

// methodSend is the method of a message that a sender may repeat.
const methodSend = "message/send"

// normaliseInner gives the message of the params the fields that every agent expects, and reports whether it
// had to.
func normaliseInner(m object) bool {
	changed := m.fill("messageId", uuid.NewString())
	changed = m.fill("role", "user") || changed
	if content := m["content"]; m.missing("parts") && bytes.HasPrefix(content, []byte("[")) {
		m["parts"] = content
		delete(m, "content")
		changed = true
	}
	parts, renamed := renameTypeKeys(m["parts"])
	if renamed {
		m["parts"] = parts
	}
	return changed || renamed
}

// renameTypeKeys returns the list of parts with their legacy key "type" as "kind", and whether any had it.
// A value of another shape stays as it is.
func renameTypeKeys(raw json.RawMessage) (json.RawMessage, bool) {
	var parts []json.RawMessage
	if json.Unmarshal(raw, &parts) != nil {
		return raw, false
	}
	changed := false
	for i, part := range parts {
		var fields object
		if json.Unmarshal(part, &fields) != nil || fields["type"] == nil || fields["kind"] != nil {
			continue
		}
		fields["kind"] = fields["type"]
		delete(fields, "type")
		parts[i], changed = fields.encode(), true
	}
	return mustMarshal(parts), changed
}

// An object is a JSON object whose values stay as they were sent, such as numbers of many digits.
type object map[string]json.RawMessage

// missing reports whether the object has no such member, or one that says nothing.
func (o object) missing(name string) bool {
	v := o[name]
	return v == nil || string(v) == "null" || string(v) == `""`
}

// fill adds a member that is missing, and reports whether it did.
func (o object) fill(name, value string) bool {
	if !o.missing(name) {
		return false
	}
	o[name] = mustMarshal(value)
	return true
}

func (o object) encode() json.RawMessage { return mustMarshal(o) }

// mustMarshal encodes strings and JSON that was parsed already, of which neither can fail.
func mustMarshal(v any) json.RawMessage {
	raw, err := marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

// digestOf returns the digest of what the document means: neither spaces nor the order of members count.
func digestOf(document json.RawMessage) [sha256.Size]byte {
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		panic(err) // it was parsed already
	}
	return sha256.Sum256(mustMarshal(v))
}
