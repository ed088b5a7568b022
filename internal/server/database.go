package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/molecule-ai/platform/internal/database"
	"github.com/molecule-ai/platform/internal/embeddedpg"
	"github.com/molecule-ai/platform/internal/schema"
)

// startTimeout bounds starting and migrating the private PostgreSQL, or connecting to the operator's.
const startTimeout = time.Minute

// AdminTokenFile is the name of the file in the data folder that holds the token generated on first start.
const AdminTokenFile = "admin_token"

// openDatabase opens the pools of the operator's database, or of the private PostgreSQL, which it starts and migrates.
func (s *Server) openDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	url := s.config.DatabaseURL
	if s.config.Embedded() {
		postgres, err := embeddedpg.Start(ctx, embeddedpg.Options{DataDir: s.config.DataDir, Logger: s.log})
		if err != nil {
			return err
		}
		s.postgres = postgres
		url = postgres.DSN(embeddedpg.DefaultDatabase)
	}
	pools, err := database.Open(ctx, database.Config{
		URL: url, DirectURL: s.config.DatabaseDirectURL,
		QueryConns: s.config.DatabaseQueryConns, FileConns: s.config.DatabaseFileConns, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.pools, s.db = pools, pools.Queries
	if !s.config.Embedded() {
		return nil
	}
	if err := s.migrate(ctx, url); err != nil {
		return err
	}
	if s.config.AdminToken != "" {
		return nil
	}
	s.config.AdminToken, err = loadAdminToken(s.config.DataDir)
	return err
}

// migrate brings the private PostgreSQL to the newest schema. One that a newer platform has migrated stays as it is:
// build decides whether this platform can serve on it.
func (s *Server) migrate(ctx context.Context, url string) error {
	db, err := database.OpenCommand(ctx, url)
	if err != nil {
		return err
	}
	defer db.Close()
	applied, err := schema.Up(ctx, db, schema.Progress(func(sentence string) { s.log.WarnContext(ctx, sentence) }))
	for _, m := range applied {
		s.log.InfoContext(ctx, "migration applied", "migration", m.String())
	}
	if errors.Is(err, schema.ErrUnknownVersion) {
		return nil
	}
	return err
}

// loadAdminToken returns the token that was generated on first start, or generates it.
func loadAdminToken(dataDir string) (string, error) {
	path := filepath.Join(dataDir, AdminTokenFile)
	raw, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(raw)) != "" {
		return strings.TrimSpace(string(raw)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the admin token cannot be read: %w", err)
	}
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	token := hex.EncodeToString(secret)
	// Written to another name and renamed, so that a start that is interrupted leaves no partial token.
	if err := os.WriteFile(path+".new", []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("the admin token cannot be written: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("the admin token cannot be written: %w", err)
	}
	return token, nil
}
