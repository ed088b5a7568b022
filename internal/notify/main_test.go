package notify

import (
	"testing"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
