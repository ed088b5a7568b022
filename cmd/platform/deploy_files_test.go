package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/molecule-ai/platform/internal/config"
)

// The parts of the files in deploy/ that the tests check. Docker and Kubernetes check the other fields; docs/deploy.md
// describes how.

const (
	repository = "../../"
	deployment = repository + "deploy/"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// A recipe is one way to run the platform: its settings and its limits.
type recipe struct {
	name    string
	env     map[string]string
	memory  string // memory limit
	spool   string // size of the spool's volume; "": on a shared disk
	files   int    // limit of open files; 0: not set
	stop    string // time from SIGTERM to SIGKILL
	serve   []string
	migrate []string
}

type composeFile struct {
	Services map[string]struct {
		Command     []string
		Environment map[string]string
		MemLimit    string `yaml:"mem_limit"`
		Ulimits     struct{ Nofile int }
		Ports       []string
		Stop        string `yaml:"stop_grace_period"`
		Healthcheck struct{ Test []string }
		DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	}
}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	var f composeFile
	if err := yaml.Unmarshal([]byte(readFile(t, deployment+"compose/compose.yaml")), &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Services) != 3 {
		t.Fatalf("%d services", len(f.Services))
	}
	return f
}

// A port is a container's port, by number or by name.
type port struct {
	Name          string
	ContainerPort int `yaml:"containerPort"`
	TargetPort    any `yaml:"targetPort"`
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

type variable struct {
	Name, Value string
	ValueFrom   struct {
		SecretKeyRef struct {
			Name, Key string
			Optional  bool
		} `yaml:"secretKeyRef"`
	} `yaml:"valueFrom"`
}

type container struct {
	Args    []string
	Env     []variable
	EnvFrom []struct {
		ConfigMapRef struct{ Name string } `yaml:"configMapRef"`
		SecretRef    struct{ Name string } `yaml:"secretRef"`
	} `yaml:"envFrom"`
	Ports          []port
	StartupProbe   probe `yaml:"startupProbe"`
	LivenessProbe  probe `yaml:"livenessProbe"`
	ReadinessProbe probe `yaml:"readinessProbe"`
	Lifecycle      struct {
		PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
	}
	Resources       struct{ Limits map[string]string }
	SecurityContext struct {
		ReadOnlyRootFilesystem bool `yaml:"readOnlyRootFilesystem"`
	} `yaml:"securityContext"`
}

// A manifest is a Kubernetes object, with the fields of all kinds that are used.
type manifest struct {
	Kind       string
	Metadata   struct{ Name string }
	Resources  []string // of a Kustomization
	Data       map[string]string
	StringData map[string]string `yaml:"stringData"`
	Spec       struct {
		Replicas int
		Ports    []port
		Template struct {
			Metadata struct{ Annotations map[string]string }
			Spec     struct {
				SecurityContext struct {
					RunAsNonRoot bool `yaml:"runAsNonRoot"`
					RunAsUser    int  `yaml:"runAsUser"`
				} `yaml:"securityContext"`
				Grace      int `yaml:"terminationGracePeriodSeconds"`
				Containers []container
				Volumes    []struct {
					EmptyDir struct {
						SizeLimit string `yaml:"sizeLimit"`
					} `yaml:"emptyDir"`
				}
			}
		}
		Rules []struct {
			HTTP struct {
				Paths []struct {
					Backend struct {
						Service struct {
							Name string
							Port struct{ Name string }
						}
					}
				}
			}
		}
	}
}

// readManifests returns the manifests by kind.
func readManifests(t *testing.T) map[string]manifest {
	t.Helper()
	files, err := filepath.Glob(deployment + "kubernetes/*.yaml")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d manifests, %v", len(files), err)
	}
	all := map[string]manifest{}
	for _, file := range files {
		decoder := yaml.NewDecoder(bytes.NewReader([]byte(readFile(t, file))))
		for {
			var m manifest
			err := decoder.Decode(&m)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || m.Kind == "" || all[m.Kind].Kind != "" {
				t.Fatalf("%s: kind %q, %v", file, m.Kind, err)
			}
			all[m.Kind] = m
		}
	}
	return all
}

// A unit is a systemd unit or a file of variables: the values by name.
type unit map[string][]string

func readUnit(t *testing.T, path string) unit {
	t.Helper()
	u := unit{}
	for line := range strings.SplitSeq(readFile(t, path), "\n") {
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "[") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("%s: %q is no assignment", path, line)
		}
		u[name] = append(u[name], value)
	}
	return u
}

// one returns the value of a name that has exactly one.
func (u unit) one(t *testing.T, name string) string {
	t.Helper()
	if len(u[name]) != 1 {
		t.Fatalf("%s has the values %q", name, u[name])
	}
	return u[name][0]
}

// An instruction of the Dockerfile.
type instruction struct{ name, rest string }

// readImage returns the instructions of each stage.
func readImage(t *testing.T) (stages [][]instruction) {
	t.Helper()
	for line := range strings.SplitSeq(readFile(t, deployment+"Dockerfile"), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		if name == "FROM" {
			stages = append(stages, nil)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], instruction{name, rest})
	}
	if len(stages) != 2 {
		t.Fatalf("%d stages", len(stages))
	}
	return stages
}

func pick(stage []instruction, name string) (rest []string) {
	for _, i := range stage {
		if i.name == name {
			rest = append(rest, i.rest)
		}
	}
	return rest
}

var interpolated = regexp.MustCompile(`\$\{(\w+)(?::[-?][^}]*)?\}`)

// recipes returns all ways to run the platform.
func recipes(t *testing.T) []recipe {
	t.Helper()
	image := map[string]string{}
	for _, assignment := range strings.Fields(strings.Join(pick(readImage(t)[1], "ENV"), " ")) {
		name, value, _ := strings.Cut(assignment, "=")
		image[name] = value
	}

	compose := readCompose(t)
	platform := compose.Services["platform"]
	inCompose := recipe{name: "compose", env: join(image, platform.Environment), memory: platform.MemLimit, files: platform.Ulimits.Nofile,
		stop: platform.Stop, serve: platform.Command, migrate: compose.Services["migrate"].Command}

	all := readManifests(t)
	pod := all["Deployment"].Spec.Template.Spec
	inKubernetes := recipe{name: "kubernetes", env: join(image, all["ConfigMap"].Data, all["Secret"].StringData),
		memory: pod.Containers[0].Resources.Limits["memory"], spool: pod.Volumes[0].EmptyDir.SizeLimit,
		stop:  fmt.Sprintf("%ds", pod.Grace-pod.Containers[0].Lifecycle.PreStop.Sleep.Seconds),
		serve: pod.Containers[0].Args, migrate: all["Job"].Spec.Template.Spec.Containers[0].Args}
	for _, v := range pod.Containers[0].Env {
		inKubernetes.env[v.Name] = v.Value
	}

	service := readUnit(t, deployment+"systemd/molecule-platform.service")
	job := readUnit(t, deployment+"systemd/molecule-platform-migrate.service")
	underSystemd := recipe{name: "systemd", env: map[string]string{}, memory: service.one(t, "MemoryMax") + "iB",
		stop: service.one(t, "TimeoutStopSec") + "s", serve: strings.Fields(service.one(t, "ExecStart"))[1:],
		migrate: strings.Fields(job.one(t, "ExecStart"))[1:]}
	if _, err := fmt.Sscan(service.one(t, "LimitNOFILE"), &underSystemd.files); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"platform.env", "secrets.env.example"} {
		for name, values := range readUnit(t, deployment+"systemd/"+file) {
			underSystemd.env[name] = values[0]
		}
	}
	for _, assignment := range service["Environment"] {
		name, value, _ := strings.Cut(assignment, "=")
		underSystemd.env[name] = value
	}
	return []recipe{inCompose, inKubernetes, underSystemd}
}

func join(all ...map[string]string) map[string]string {
	joined := map[string]string{}
	for _, m := range all {
		for name, value := range m {
			joined[name] = value
		}
	}
	return joined
}

// load returns the configuration from the recipe's variables, and the variables that are no settings.
func (r recipe) load(t *testing.T) (c config.Config, unknown []string) {
	t.Helper()
	var s config.Settings
	settings := map[string]reflect.Value{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[config.Settings]()) {
		field := reflect.ValueOf(&s).Elem().FieldByIndex(f.Index)
		field.SetString(f.Tag.Get("default"))
		settings[f.Tag.Get("env")] = field
	}
	for name, value := range r.env {
		if field, ok := settings[name]; ok {
			field.SetString(interpolated.ReplaceAllString(value, "x"))
		} else if name != "GOMEMLIMIT" { // read by the Go runtime
			unknown = append(unknown, name)
		}
	}
	s.SpoolDir = t.TempDir()
	if s.AdminToken == "" || s.AdminToken == "x" { // the operator sets it
		s.AdminToken = strings.Repeat("token", 7)
	}
	s.TrustedProxies = strings.TrimPrefix(s.TrustedProxies, "x")
	s.CORSOrigins = strings.TrimPrefix(s.CORSOrigins, "x")
	c, err := s.Load()
	if err != nil {
		t.Errorf("%s: the platform would not start: %v", r.name, err)
	}
	return c, unknown
}
