// Renders conversations with Ollama's own template package: jobs as JSON on standard input, what
// each rendered to, or its error, as JSON on standard output.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/template"
)

type job struct {
	Template string        `json:"template"`
	Messages []api.Message `json:"messages"`
}

type answer struct {
	Prompt string `json:"prompt"`
	Error  string `json:"error"`
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answers := make([]answer, 0, len(jobs))
	for _, each := range jobs {
		answers = append(answers, render(each))
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func render(each job) (made answer) {
	defer func() {
		if trouble := recover(); trouble != nil {
			made = answer{Error: fmt.Sprint("panic: ", trouble)}
		}
	}()
	parsed, err := template.Parse(each.Template)
	if err != nil {
		return answer{Error: err.Error()}
	}
	var prompt bytes.Buffer
	if err := parsed.Execute(&prompt, template.Values{Messages: each.Messages}); err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Prompt: prompt.String()}
}
