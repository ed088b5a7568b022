package pendinguploads

// OnRowRead makes the storage call do while it copies a row from the driver.
func (p *Postgres) OnRowRead(do func()) {
	allocate := p.buffers.New
	p.buffers.New = func() any { do(); return allocate() }
}

// WithContextError exports withContextError.
var WithContextError = withContextError
