// What Ollama makes of a Modelfile, with Go's own text/template: `go run tests/go/ollama.go < jobs.json`.
//
// Standard input is a list of {"modelfile": text, "conversations": [[{"role", "content"}, ...], ...]}; standard output a
// list of {"instructions": [[name, argument], ...], "prompts": [text, ...]}. As Ollama documents it, a template has
// Messages (each with Role and Content), System (the system messages, joined by an empty line), Tools, Prompt, Suffix
// and Response, and a Modelfile has an instruction a line, its argument in triple quotes where it has several lines.
// Two things it does not document are here too: characters that are not printed are left out of an argument, and
// messages of one role that follow each other are one message.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type job struct {
	Modelfile     string      `json:"modelfile"`
	Conversations [][]message `json:"conversations"`
}

type result struct {
	Instructions [][2]string `json:"instructions"`
	Prompts      []string    `json:"prompts"`
}

const quotes = `"""`

func instructions(modelfile string) [][2]string {
	var found [][2]string
	lines := strings.Split(modelfile, "\n")
	for n := 0; n < len(lines); n++ {
		line := strings.TrimLeft(lines[n], " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, argument, _ := strings.Cut(line, " ")
		for strings.HasPrefix(argument, quotes) && !closed(argument) {
			n++
			if n == len(lines) {
				fail(fmt.Errorf("the argument of %s is not closed", name))
			}
			argument += "\n" + lines[n]
		}
		found = append(found, [2]string{name, printed(unquoted(argument))})
	}
	return found
}

func closed(argument string) bool {
	return len(argument) >= 2*len(quotes) && strings.HasSuffix(strings.TrimRight(argument, " \t"), quotes)
}

func unquoted(argument string) string {
	argument = strings.TrimSpace(argument)
	if closed(argument) && strings.HasPrefix(argument, quotes) {
		return argument[len(quotes) : len(argument)-len(quotes)]
	}
	if name, quoted, has := strings.Cut(argument, " "); has && strings.HasPrefix(quoted, `"`) && name != "" {
		return name + " " + strings.Trim(quoted, `"`)
	}
	return argument
}

func printed(text string) string {
	return strings.Map(func(each rune) rune {
		if strconv.IsPrint(each) || each == '\n' || each == '\t' {
			return each
		}
		return -1
	}, text)
}

func render(parsed *template.Template, conversation []message) string {
	var system []string
	var messages []*message
	for n := range conversation {
		each := conversation[n]
		if each.Role == "system" {
			system = append(system, each.Content)
		}
		if last := len(messages) - 1; last >= 0 && messages[last].Role == each.Role {
			messages[last].Content += "\n\n" + each.Content
		} else {
			messages = append(messages, &each)
		}
	}
	var written strings.Builder
	variables := map[string]any{
		"System": strings.Join(system, "\n\n"), "Messages": messages, "Tools": nil,
		"Prompt": "", "Suffix": "", "Response": "",
	}
	if err := parsed.Execute(&written, variables); err != nil {
		fail(err)
	}
	return written.String()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		fail(err)
	}
	results := make([]result, len(jobs))
	for n, job := range jobs {
		results[n] = result{instructions(job.Modelfile), []string{}}
		for _, each := range results[n].Instructions {
			if each[0] != "TEMPLATE" {
				continue
			}
			parsed, err := template.New("").Option("missingkey=zero").Parse(each[1])
			if err != nil {
				fail(err)
			}
			for _, conversation := range job.Conversations {
				results[n].Prompts = append(results[n].Prompts, render(parsed, conversation))
			}
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		fail(err)
	}
}
