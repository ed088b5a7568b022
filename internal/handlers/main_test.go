package handlers_test

import (
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	pgtest.Main(m)
}
