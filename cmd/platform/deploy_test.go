package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"

	"github.com/molecule-ai/platform/internal/config"
)

// postgresVariables are the variables of PostgreSQL's image that are used.
var postgresVariables = []string{"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS"}

// Planted faults: a misspelt variable in compose.yaml, in config.yaml, in platform.env, in the image; a value that is
// not a number; a variable that PostgreSQL's image does not have; an unused one in .env.example.
func TestDeploy_EveryVariableIsASettingWithAGoodValue(t *testing.T) {
	t.Parallel()
	for _, r := range recipes(t) {
		if len(r.env) < 6 {
			t.Errorf("%s: only %d variables", r.name, len(r.env))
		}
		if _, unknown := r.load(t); len(unknown) > 0 {
			t.Errorf("%s: the platform has no settings %q", r.name, unknown)
		}
		for _, name := range []string{"DATABASE_URL", "ADMIN_TOKEN", "ADDR", "SPOOL_DIR", "GOMEMLIMIT"} {
			if _, ok := r.env[name]; !ok {
				t.Errorf("%s does not say %s", r.name, name)
			}
		}
	}
	compose := readCompose(t)
	for name := range compose.Services["database"].Environment {
		if !slices.Contains(postgresVariables, name) {
			t.Errorf("compose: is there a variable %s of PostgreSQL's image?", name)
		}
	}
	if _, ok := compose.Services["migrate"].Environment["DATABASE_URL"]; !ok {
		t.Error("compose: the migration has no DATABASE_URL")
	}
	asked, given := map[string]bool{}, readUnit(t, deployment+"compose/.env.example")
	for _, found := range interpolated.FindAllStringSubmatch(readFile(t, deployment+"compose/compose.yaml"), -1) {
		asked[found[1]] = true
	}
	for name := range given {
		if !asked[name] {
			t.Errorf("compose.yaml does not use %s of .env.example", name)
		}
	}
	for name := range asked {
		if given[name] == nil {
			t.Errorf(".env.example has no %s, which compose.yaml uses", name)
		}
	}
	all := readManifests(t)
	for _, v := range all["Job"].Spec.Template.Spec.Containers[0].Env {
		ref := v.ValueFrom.SecretKeyRef
		_, ok := all["Secret"].StringData[ref.Key]
		allowed := ok && v.Name == "DATABASE_URL" || ref.Optional && v.Name == "DATABASE_DIRECT_URL" // optional: only with a pooler
		if !allowed || ref.Key != v.Name || ref.Name != all["Secret"].Metadata.Name {
			t.Errorf("kubernetes: the job takes %s from %+v", v.Name, ref)
		}
	}
}

// Planted faults: memory: 512Mi; GOMEMLIMIT above the limit; MAX_DOWNLOADS, and so the sum, raised; SPOOL_BYTES above
// the spool's size; nofile and LimitNOFILE below MAX_WAITS; TimeoutStopSec=30; a grace period that preStop uses up.
func TestDeploy_LimitsHoldWhatTheSettingsLetIn(t *testing.T) {
	t.Parallel()
	for _, r := range recipes(t) {
		c, _ := r.load(t)
		need, limit, goal := memory(c), bytesOf(t, r.memory), bytesOf(t, r.env["GOMEMLIMIT"])
		t.Logf("%s: %s at most, of %s", r.name, humanize.IBytes(need), humanize.IBytes(limit))
		if need > goal || goal >= limit {
			t.Errorf("%s: up to %s are needed; GOMEMLIMIT is %s, the limit %s", r.name, humanize.IBytes(need), humanize.IBytes(goal), humanize.IBytes(limit))
		}
		if r.spool != "" && uint64(c.SpoolBytes) > bytesOf(t, r.spool) {
			t.Errorf("%s: uploads take up to %s of a spool of %s", r.name, humanize.IBytes(uint64(c.SpoolBytes)), r.spool)
		}
		if connections := c.MaxWaits + c.MaxStreams + c.MaxUploads + c.MaxDownloads + c.MaxMessages; r.files != 0 && 2*connections > r.files {
			t.Errorf("%s: %d connections, and only %d files", r.name, connections, r.files)
		}
		// 30 s for requests in flight and 5 s to flush traces, see internal/server.
		if stop, err := time.ParseDuration(r.stop); err != nil || stop < 35*time.Second {
			t.Errorf("%s: it is killed %s after the signal", r.name, r.stop)
		}
	}
}

// memory computes the memory limit as documented in docs/limits.md, "Memory".
func memory(c config.Config) uint64 {
	sum := 100<<20 + c.MaxUploads*2<<20 + c.MaxDownloads*3<<20 + c.MaxMessages*2<<20 + int(c.MaxJSONBytes)*4 + c.MaxWaits*30<<10 + c.MaxStreams*40<<10
	return uint64(sum)
}

// bytesOf parses sizes of Docker (1g), Kubernetes (1Gi) and systemd. All are powers of two.
func bytesOf(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := humanize.ParseBytes(regexp.MustCompile(`(?i)([kmg])i?b?$`).ReplaceAllString(s, "${1}iB"))
	if err != nil {
		t.Errorf("%q is no size: %v", s, err)
	}
	return n
}

// Planted faults: 'migrate upp' in compose.yaml, 'migrate status' in migrate.yaml, 'server' in the unit, 'health' in
// the health check.
func TestDeploy_CommandsAreThoseOfThePlatform(t *testing.T) {
	t.Parallel()
	want := func(where string, args []string, command string) {
		t.Helper()
		parser, err := kong.New(&cli{}, kong.Exit(func(int) {}), kong.Writers(io.Discard, io.Discard))
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parser.Parse(args)
		if err != nil {
			t.Errorf("%s: %v", where, err)
		} else if parsed.Command() != command {
			t.Errorf("%s runs %q, not %q", where, parsed.Command(), command)
		}
	}
	for _, r := range recipes(t) {
		want(r.name, r.serve, "serve")
		want(r.name, r.migrate, "migrate up")
	}
	image := readImage(t)[1]
	want("image", words(t, pick(image, "CMD")), "serve")
	entry := words(t, pick(image, "ENTRYPOINT"))
	compose := readCompose(t)
	check := compose.Services["platform"].Healthcheck.Test
	if len(check) < 2 || check[0] != "CMD" || !slices.Equal(check[1:2], entry) {
		t.Fatalf("the health check is %q, the image has %q and no shell", check, entry)
	}
	want("health check", check[2:], "ready")
	if needs := compose.Services["platform"].DependsOn; needs["migrate"].Condition != "service_completed_successfully" {
		t.Errorf("compose: the platform waits for %+v", needs)
	}
}

// words parses an instruction's JSON array.
func words(t *testing.T, rest []string) []string {
	t.Helper()
	if len(rest) != 1 || !strings.HasPrefix(rest[0], `["`) {
		t.Fatalf("%q", rest)
	}
	return strings.Split(strings.Trim(rest[0], `["]`), `", "`)
}

// Planted faults: /healthz in deployment.yaml, /ready in haproxy.cfg; another containerPort, targetPort, EXPOSE and
// published port; a port name that does not exist; another name of the config map.
func TestDeploy_ProbesAndPortsAreThoseOfThePlatform(t *testing.T) {
	t.Parallel()
	p := serveOn(t, newDatabase(t))
	all := readManifests(t)
	pod := all["Deployment"].Spec.Template
	platform := pod.Spec.Containers[0]
	paths := map[string]string{"scrape": pod.Metadata.Annotations["prometheus.io/path"]}
	for name, probe := range map[string]probe{"startup": platform.StartupProbe, "liveness": platform.LivenessProbe, "readiness": platform.ReadinessProbe} {
		paths[name] = probe.HTTPGet.Path
		if probe.HTTPGet.Port != "http" {
			t.Errorf("%s: port %q", name, probe.HTTPGet.Port)
		}
	}
	if found := regexp.MustCompile(`option httpchk GET (\S+)`).FindStringSubmatch(readFile(t, deployment+"proxy/haproxy.cfg")); found != nil {
		paths["haproxy"] = found[1]
	}
	if len(paths) != 5 || paths["readiness"] != "/readyz" || paths["liveness"] != "/health" {
		t.Errorf("probes: %v", paths)
	}
	for name, path := range paths {
		response, err := http.Get(p.url + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s is answered with %s", name, path, response.Status)
		}
	}

	settings := all["ConfigMap"].Data
	ports := map[string]string{}
	for _, port := range platform.Ports {
		ports[port.Name] = strconv.Itoa(port.ContainerPort)
	}
	same(t, "kubernetes: http", ports["http"], portOf(t, settings["ADDR"]))
	same(t, "kubernetes: metrics", ports["metrics"], portOf(t, settings["METRICS_ADDR"]))
	same(t, "kubernetes: scraped", pod.Metadata.Annotations["prometheus.io/port"], portOf(t, settings["METRICS_ADDR"]))
	same(t, "kubernetes: service", all["Service"].Spec.Ports[0].TargetPort, "http")
	backend := all["Ingress"].Spec.Rules[0].HTTP.Paths[0].Backend.Service
	same(t, "kubernetes: ingress", backend.Name+" "+backend.Port.Name, all["Service"].Metadata.Name+" "+all["Service"].Spec.Ports[0].Name)
	same(t, "kubernetes: config map", platform.EnvFrom[0].ConfigMapRef.Name, all["ConfigMap"].Metadata.Name)
	same(t, "kubernetes: secret", platform.EnvFrom[1].SecretRef.Name, all["Secret"].Metadata.Name)
	for _, file := range all["Kustomization"].Resources {
		readFile(t, deployment+"kubernetes/"+file)
	}

	for _, r := range recipes(t) {
		if r.name == "compose" {
			published := readCompose(t).Services["platform"].Ports[0]
			same(t, "compose", published[strings.LastIndexByte(published, ':')+1:], portOf(t, r.env["ADDR"]))
		}
		if r.name == "systemd" {
			for _, proxy := range []string{"nginx.conf", "Caddyfile", "haproxy.cfg"} {
				if !strings.Contains(readFile(t, deployment+"proxy/"+proxy), " "+r.env["ADDR"]) {
					t.Errorf("%s does not pass on to %s", proxy, r.env["ADDR"])
				}
			}
		}
	}
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want || want == "" {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Error(err)
	}
	return port
}

// Planted faults: another version of Go; USER platform, USER 0; runAsUser 1000; a folder that does not exist; one that
// .dockerignore excludes; a RUN in the last stage; cgo.
func TestDeploy_ImageIsOneStaticFileOfAUserWhoIsNotRoot(t *testing.T) {
	t.Parallel()
	stages := readImage(t)
	build, image := stages[0], stages[1]
	toolchain := regexp.MustCompile(`(?m)^toolchain go(\S+)$`).FindStringSubmatch(readFile(t, repository+"go.mod"))[1]
	if from := pick(build, "FROM")[0]; !strings.Contains(from, " golang:"+toolchain+"-") {
		t.Errorf("the image is built from %q, go.mod has %s", from, toolchain)
	}
	allowed := strings.Split(readFile(t, deployment+"Dockerfile.dockerignore"), "\n")
	sources := 0
	for _, c := range pick(build, "COPY") {
		names := strings.Fields(c)
		for _, name := range names[:len(names)-1] {
			sources++
			if _, err := os.Stat(repository + name); err != nil || !slices.Contains(allowed, "!"+name) {
				t.Errorf("COPY %s: %v; .dockerignore lets %q in", name, err, allowed)
			}
		}
	}
	line := strings.Join(pick(build, "RUN"), "\n")
	if sources < 5 || !strings.Contains(line, "CGO_ENABLED=0 ") || !strings.Contains(line, `-X main.version=$VERSION"`) {
		t.Errorf("%d sources, built by %s", sources, line)
	}

	if from := pick(image, "FROM")[0]; from != "scratch" || len(pick(image, "RUN")) > 0 {
		t.Errorf("the image is made from %s, by %q", from, pick(image, "RUN"))
	}
	user := pick(image, "USER")[0]
	if !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(user) || !strings.Contains(strings.Join(pick(image, "COPY"), "\n"), "--chown="+user+" /spool /spool") {
		t.Errorf("USER %s, whose spool is by %q", user, pick(image, "COPY"))
	}
	same(t, "EXPOSE", ":"+pick(image, "EXPOSE")[0], strings.TrimPrefix(strings.Fields(pick(image, "ENV")[0])[0], "ADDR="))
	all := readManifests(t)
	for _, kind := range []string{"Deployment", "Job"} {
		pod := all[kind].Spec.Template.Spec
		same(t, kind+": user", strconv.Itoa(pod.SecurityContext.RunAsUser), user[:strings.IndexByte(user, ':')])
		if !pod.SecurityContext.RunAsNonRoot || !pod.Containers[0].SecurityContext.ReadOnlyRootFilesystem {
			t.Errorf("%s: %+v", kind, pod.SecurityContext)
		}
	}
}
