package metrics

import (
	"cmp"
	"os"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descSpoolSize = prometheus.NewDesc("molecule_spool_size_bytes", "Size of the file system that holds the temporary files of uploads.", nil, nil)
	descSpoolFree = prometheus.NewDesc("molecule_spool_free_bytes", "Free space of the file system that holds the temporary files of uploads.", nil, nil)
)

// spoolDisk reports on the file system of a folder; "" stands for the system's temporary folder.
type spoolDisk string

// Describe implements prometheus.Collector.
func (d spoolDisk) Describe(descs chan<- *prometheus.Desc) {
	descs <- descSpoolSize
	descs <- descSpoolFree
}

// Collect implements prometheus.Collector.
func (d spoolDisk) Collect(metrics chan<- prometheus.Metric) {
	size, free, ok := statfs(cmp.Or(string(d), os.TempDir()))
	if !ok {
		return
	}
	metrics <- prometheus.MustNewConstMetric(descSpoolSize, prometheus.GaugeValue, float64(size))
	metrics <- prometheus.MustNewConstMetric(descSpoolFree, prometheus.GaugeValue, float64(free))
}
