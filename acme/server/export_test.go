package server

import "github.com/gorilla/mux"

// Routes lists the names of all routes, for the test that none was forgotten.
func (s *Server) Routes() ([]string, error) {
	var names []string
	err := s.router.Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		names = append(names, route.GetName())
		return nil
	})
	return names, err
}
