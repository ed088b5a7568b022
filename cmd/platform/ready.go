package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/molecule-ai/platform/internal/config"
)

// readyTimeout bounds the whole check.
const readyTimeout = 5 * time.Second

// readyCmd is for health checks without a shell or curl, as in the image.
type readyCmd struct{}

// Run requests /readyz on ADDR. The error says why the platform is not ready.
func (readyCmd) Run(env *environment, settings *config.Settings) error {
	ctx, cancel := context.WithTimeout(env.ctx, readyTimeout)
	defer cancel()
	url := "http://" + reachable(settings.Addr) + "/readyz"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("ADDR is %q; write the address that the platform serves on", settings.Addr)
	}
	// Not the default transport, which would send the request through the environment's HTTP_PROXY.
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("the platform does not answer: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("the platform does not answer: %w", err)
	}
	answer := strings.TrimSpace(string(body))
	if response.StatusCode != http.StatusOK {
		return errors.New("not ready: " + answer)
	}
	_, err = fmt.Fprintln(env.stdout, answer)
	return err
}
